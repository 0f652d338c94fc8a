"""What every room uses: files, settings and their checks, progress, plots, processes, random states."""
