"""Names of tensors without what training programs put around a model's own.

PEFT saves a merged model's state as `base_model.model.*`, data-parallel training as `module.*`; `torch.compile`, FSDP
and activation checkpointing put a part before the name of each module that they wrap.
"""

import re

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OUTER = re.compile(r"(?:base_model\.model\.|module\.)+")


def unwrapped(name: str) -> str:
    """Return the model's own name of a tensor."""
    name = _WRAPPERS.sub("", name)
    outer = _OUTER.match(name)
    return name[outer.end() :] if outer else name
