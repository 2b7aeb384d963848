"""Sections, tables, figures and equations of the two papers are cited for what they are about."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path
    for folder, kinds in (("src", ("py", "yaml", "cpp", "h")), ("docs", ("md",)), ("examples", ("py",)), (".", ("md",)))
    for kind in kinds
    for path in ((ROOT / folder).rglob(f"*.{kind}") if folder != "." else ROOT.glob(f"*.{kind}"))
    if path.name != "CHANGELOG.md"
)
NAMED = r"(?P<paper>NFNets|NF-ResNets|first paper|second paper)(?: \(arXiv:[\d.]+\))?, "
PART = r"(?:eq\.|sections?|appendi(?:x|ces)|tables?|figures?)"
NUMBER = r"(?:[A-H]\.\d|[A-H]\b|\d\.\d|\d+)"
LIST = rf"{NUMBER}(?:(?:, | and | to ){NUMBER})*"
CITED = re.compile(rf"{NAMED}(?P<list>(?:{PART} {LIST}|[A-H]\.\d)(?:(?:, | and |, and ){PART} {LIST})*)")

# What each part is about, as words that stand near its citation.
TOPICS = {
    "NFNets": {
        "eq. 1": "standard",
        "eq. 2": "clip",
        "eq. 3": "clip|unit",
        "section 2": "examples|inner product",
        "section 3": "skip|block",
        "section 4": "clip",
        "section 4.1": "clip",
        "section 5": "NFNet F0",
        "section 5.1": "clip|parameter groups",
        "section 6.2": "pre-training",
        "section 6.1": "from scratch|schedule|sharpness|papers' recipe|EfficientNets",
        "appendix A.1": "weight decay|from scratch|moving average|schedule|parameter groups",
        "appendix A.2": "median|steps|a step|accumulate",
        "appendix A.3": "mixup|cutmix|randaugment|from scratch|trained on",
        "appendix A.4": "sharpness|gradient at weights|fine-tuning on",
        "appendix A.5": "pre-training",
        "appendix C": "squeeze|gate|NFNet F0|stem|convolution behind the last stage",
        "appendix D": "clipping ablation",
        "appendix E": "1x1|multiplies its output|straddle|group width|coefficients",
        "table 1": "NFNet F0",
        "table 2": "ablation|augmentation|ladder",
        "table 3": "from scratch|ResNet-50|top-1|sharpness",
        "table 4": "(NF-ResNet-|Normalizer-Free).*pre-training|pre-training of Normalizer-Free",
        "table 5": "NFNet-F4.*pre-training",
        "table 6": "BatchNorm|ladder",
        "figure 1": "top-1 over|published",
        "figure 2": "clipping ablation",
        "figure 4": "top-1 over|published",
        "figure 7": "clipping ablation",
        "figure 5": "block|alpha",
        "figure 6": "block|alpha",
    },
    "NF-ResNets": {
        "section 3": "signal propagation|squared mean|channel statistics|relu-bn-conv",
        "section 4": "alpha|block|theory|NF-ResNet and|failures",
        "section 4.1": "mean.?shift|channel means",
        "section 4.3": "gamma",
        "section 4.4": "squeeze|gate|gamma",
        "section 5": "NF-ResNet and",
        "section 5.1": "from scratch|at batch|schedule",
        "section 5.2": "RegNet|EfficientNet|depthwise",
        "appendix A.1": "singular|spectr|condition number|purely standardized",
        "appendix B.1": "affine transform|channelaffine|gain and a bias",
        "appendix B.2": "stochastic depth|drop|rescaling",
        "appendix B.4": "pooling",
        "appendix C": "RegNet|average|hidden width of squeeze-excite|convolution behind the last stage",
        "appendix D.1": "gamma",
        "appendix F": "statistics|failures",
        "appendix G.1": "weight (scheme|normalization|standardization)|standardized",
        "appendix G.2": "constant.variance|variance constant|pixel.norm",
        "appendix H": "NYU|VOC|segmentation",
        "appendix H.1": "segmentation|learning rate|pixel|convolutional",
        "appendix H.2": "depth|up-projection|grey",
        "table 1": "from scratch|fixup|dropout|NF-ResNet-50",
        "table 2": "batch",
        "table 3": "RegNet|EfficientNet",
        "table 4": "BatchNorm|nf_resnet",
        "table 5": "EfficientNet",
        "table 6": "segmentation",
        "table 7": "depth",
        "figure 1": "signal propagation plots|relu-bn-conv|order",
        "figure 2": "signal propagation plots|he initialization",
        "figure 3": "top-1 over|published",
        "figure 4": "pre-activation",
        "figure 5": "original block",
        "figure 6": "signal propagation plots|explodes",
        "figure 7": "signal propagation plots|linear|nopool",
        "figure 8": "signal propagation plots|sqrt\\(2\\)",
        "figure 9": "signal propagation plots|squeeze",
        "figure 10": "signal propagation plots|fixup",
        "figure 11": "signal propagation plots|post-activation|v1",
    },
}
PAPERS = {"second paper": "NFNets", "first paper": "NF-ResNets"}


def parts(text: str) -> list[str]:
    """``sections 4.1 and 5.1, appendix A.1`` as one string for each."""
    found, kind = [], "appendix"
    for word in re.findall(rf"{PART}|{NUMBER}|\bto\b", text):
        if re.fullmatch(PART, word):
            kind = word if word == "eq." else word.rstrip("s").replace("appendice", "appendix")
        elif word == "to":
            found.append("to")
        elif found and found[-1] == "to":
            found.pop()
            first = int(found[-1].split()[1])
            found += [f"{kind} {number}" for number in range(first + 1, int(word) + 1)]
        else:
            found.append(f"{kind} {word}")
    return found


def citations(path: Path) -> list[tuple[str, str, str]]:
    """(paper, part, words around it) of each citation of a file."""
    text = " ".join(re.sub(r"^\s*(#|//|\*)+", "", line).strip() for line in path.read_text().splitlines())
    found = []
    for match in CITED.finditer(text):
        paper = PAPERS.get(match["paper"], match["paper"])
        around = text[max(0, match.start() - 420) : match.start()] + text[match.end() : match.end() + 160]
        found += [(paper, part, around) for part in parts(match["list"])]
    return found


def test_how_citations_are_read():
    assert parts("figures 1, 2 and 6 to 8") == ["figure 1", "figure 2", "figure 6", "figure 7", "figure 8"]
    assert parts("table 3, section 6.1 and appendices A.1 and A.3") == [
        "table 3",
        "section 6.1",
        "appendix A.1",
        "appendix A.3",
    ]
    assert parts("H.1") == ["appendix H.1"]
    assert sum(len(citations(path)) for path in FILES) > 150


def test_what_is_cited_is_about_it():
    for path in FILES:
        for paper, part, around in citations(path):
            where = f"{path.relative_to(ROOT)}: {paper}, {part}"
            assert part in TOPICS[paper], f"{where} is nothing that anything here is about"
            assert re.search(TOPICS[paper][part], around, re.IGNORECASE), f"{where} is not about: {around}"
