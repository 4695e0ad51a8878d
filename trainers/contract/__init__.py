"""Values that cross between the packages, without torch: specs, stages, records, schedules, scales, FLOPs."""
