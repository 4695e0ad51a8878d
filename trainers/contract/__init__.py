"""Values that cross between the packages: specs, records, schedules, scales, FLOPs. No torch here."""
