"""Quantities as people read them."""


def size(count: int) -> str:
    """Bytes in powers of ten, as disks are sold."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def memory(count: int) -> str:
    """Bytes in powers of two, as memory is sold."""
    return f"{count / 2**30:.1f} GiB"
