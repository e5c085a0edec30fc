"""Schedules: what comes due when, and what becomes of it. `cron`, `policy`, `template` and `backfill` are pure."""
