"""File formats to ship a model in: one module a format, which declares its suffix and how it is written."""
