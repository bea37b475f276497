"""Images: decoding, augmentation, captions and rows of batches."""
