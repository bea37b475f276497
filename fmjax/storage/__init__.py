"""Files and folders on mounted file systems and in buckets (gs://, s3://)."""
