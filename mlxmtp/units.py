"""Numbers of bytes in words."""


def size(count: int) -> str:
    """Return a number of bytes in decimal units (kB, MB, GB), as for disks."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def memory(count: int) -> str:
    """Return a number of bytes in GiB, as for memory."""
    return f"{count / 2**30:.1f} GiB"
