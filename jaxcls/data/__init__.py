"""From files to batches of uint8 images: sources, transforms, and the pipeline that runs them."""
