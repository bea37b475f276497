"""What `fmjax data` shows."""
