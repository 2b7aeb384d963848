"""Signal statistics of the authors' models, from their code."""

import golden_data as gd
import numpy as np
import pytest

import normfree
from normfree.spp import record

FILES = gd.MODELS | gd.CONTROLS


@pytest.mark.parametrize("file", FILES)
def test_statistics_are_the_authors(file):
    golden = gd.load(file)
    model = normfree.create_model(FILES[file], num_classes=10).eval()
    normfree.weights.load_haiku(model, gd.parameters(golden))
    x = gd.images(file, golden["logits"].shape[0])
    if file == "fixup_resnet50_64":
        # One branch has a variance of 5e-7 around means of 0.1, where float32 convolutions of two libraries, which
        # round differently, differ by 1.02e-5 of it.
        model, x = model.double(), x.double()
    spp = record(model, x)
    blocks = len(golden["res_avg_var"])
    assert len(spp.rows) == blocks
    np.testing.assert_allclose([spp.stem.avg_sq_mean, *spp.avg_sq_mean], golden["avg_sq_mean"], rtol=1e-5)
    np.testing.assert_allclose([spp.stem.avg_var, *spp.avg_var], golden["avg_var"], rtol=1e-5)
    np.testing.assert_allclose(spp.res_avg_var, golden["res_avg_var"], rtol=1e-5)
    assert all(not row.activated for row in spp.rows) or file == "fixup_resnet50_64"
    stages = [row.stage for row in spp.rows]
    assert [stages.count(i) for i in range(4)] == [len(stage) for stage in model.stages]
