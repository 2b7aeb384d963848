"""``normfree eval``."""

from collections.abc import Sequence

from ..data import Loader, open_source
from ..errors import RunFailed, UsageError
from ..tasks.classification import Accuracy
from ..training import evaluate, pick_device
from .main import Parser
from .trained import evaluation_transform, load_trained


def run(argv: Sequence[str]) -> int:
    """Measure a trained network on the test split of its images, or of others."""
    parser = Parser("eval", description="Measure a trained network: top-1, top-5 and loss on the test split.")
    parser.add_argument("run", metavar="RUN", help="run folder, or a .safetensors file of one")
    parser.add_argument(
        "--data", metavar="SOURCE", help="other images: imagefolder:PATH or wds:... (of the same classes)"
    )
    parser.add_argument("--checkpoint", choices=["last", "best"], help="default: last")
    parser.add_argument("--weights", choices=["ema", "raw"], help="averaged or raw; default: averaged where there are")
    parser.add_argument("--size", type=int, help="side of the images in pixels; default: the recipe's test size")
    parser.add_argument("--batch-size", type=int, default=64, help="default: 64")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images; default: 0")
    parser.add_argument("--device", default="auto", help="default: cuda where there is one, else cpu")
    options = parser.parse_args(list(argv))
    if options.batch_size < 1 or options.workers < 0:
        raise UsageError(
            f"--batch-size (={options.batch_size}) must be at least 1, --workers (={options.workers}) at least 0"
        )
    if options.size is not None and options.size < 1:
        raise UsageError(f"--size (={options.size}) must be at least 1")
    trained = load_trained(options.run, options.checkpoint, options.weights)
    data = trained.recipe.data
    data.test_size = options.size or data.test_size
    source = open_source(options.data or data.source, data.channels)
    if source.classes != trained.classes:
        differing = sorted(set(source.classes) ^ set(trained.classes))
        sided = [f"{name} (only in the {'images' if name in source.classes else 'network'})" for name in differing]
        raise UsageError(
            f"classes of {options.data or data.source} and of {trained.source} differ: {', '.join(sided[:8])}"
        )
    device = pick_device(options.device)
    loader = Loader(source.test, evaluation_transform(trained), options.batch_size, workers=options.workers)
    measured, unreadable = evaluate(trained.model.to(device), loader, Accuracy(), device)
    for message in unreadable:
        print(f"skipped unreadable image {message}")
    if not measured["images"]:
        raise RunFailed(f"none of the {len(unreadable)} images could be read")
    if len(unreadable) > data.max_unreadable:
        raise RunFailed(f"{len(unreadable)} images are unreadable, data.max_unreadable is {data.max_unreadable}")
    print(
        f"{trained.source}: {trained.recipe.model.name} on {options.data or data.source}, {measured['images']} images"
    )
    print(f"top-1 {measured['top1']:.2%}   top-5 {measured['top5']:.2%}   loss {measured['loss']:.4f}")
    return 0
