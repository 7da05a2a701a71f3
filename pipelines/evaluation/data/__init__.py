"""What is measured on: images, labels, boxes and maps."""
