"""Sources of examples: text files, image folders, pair files, TFDS, built-in sets."""
