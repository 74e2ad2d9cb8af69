"""What a compiler is predicted to make of a schedule, in bytes and in seconds; imports `schedule` and pure data.

What holds for every XLA compiler stands here; what belongs to one alone stands in a package of its own, `xla_cpu`,
which `backends` chooses.
"""
