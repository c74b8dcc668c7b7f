"""Models that run beside their packs: calibration, parity of answers, speech."""
