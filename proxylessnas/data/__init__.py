"""Images: reading any photo, preprocessing, class names, and labelled sets of them in folders or by name."""
