from normfree.words import counted


def test_one_and_many():
    assert counted(1, "image") == "1 image"
    assert counted(0, "image") == "0 images"
    assert counted(1437, "test image") == "1,437 test images"
    assert counted(2, "branch", "branches") == "2 branches"
    assert counted(1, "branch", "branches") == "1 branch"
