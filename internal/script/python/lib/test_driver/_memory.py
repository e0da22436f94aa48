"""How much memory the script may have: a list without end is an error of the script, at its place, before the host
has to end something else."""

import resource

_limit = 0


def limit(size):
    """Lets this process have so many bytes of data. Programs that it starts may have as much, each."""
    global _limit
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY and most <= size:
        return
    resource.setrlimit(resource.RLIMIT_DATA, (size, most))
    _limit = size


def lift():
    """Takes the limit back, for what has to be said at the end."""
    if _limit:
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def exceeded():
    """What a MemoryError means; None if the limit is not ours."""
    if not _limit:
        return None
    return (
        f"the script has more than {_limit >> 20} MiB in memory, which is the limit (ATTEST_SCRIPT_MEMORY sets another): "
        "a list, a text or a number that grows without end?"
    )
