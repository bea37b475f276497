"""Reports on data, printed by `fmjax data`."""
