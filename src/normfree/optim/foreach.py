"""torch's operations over a list of tensors in one call, which the ``foreach`` forms of its own optimizers use."""

from ..internals import private

foreach_add = private("torch._foreach_add")
foreach_add_ = private("torch._foreach_add_")
foreach_addcdiv_ = private("torch._foreach_addcdiv_")
foreach_addcmul_ = private("torch._foreach_addcmul_")
foreach_copy_ = private("torch._foreach_copy_")
foreach_div = private("torch._foreach_div")
foreach_div_ = private("torch._foreach_div_")
foreach_lerp_ = private("torch._foreach_lerp_")
foreach_mul = private("torch._foreach_mul")
foreach_mul_ = private("torch._foreach_mul_")
foreach_norm = private("torch._foreach_norm")
foreach_sqrt_ = private("torch._foreach_sqrt_")
foreach_sub_ = private("torch._foreach_sub_")
