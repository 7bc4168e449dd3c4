"""Update rules, clipping and learning-rate schedules, all on a rank's own shards."""
