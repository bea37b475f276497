"""The parts that families share."""
