"""How large what is read may be.

What is beyond is named, with its size and the limit. An image, or what belongs to it, is left out and counted like one
that cannot be read; a file that was asked for is refused. Where a limit is of something that a file claims, it is
looked at before anything of that size is made.
"""

# Images, and what belongs to them
MAX_IMAGE_SIDE = 2**16  # pixels of an image file along a side, as of JPEG; in all: PIL's limit, 89,478,485
MAX_RESIZED_PIXELS = 2**25  # pixels of an image that `short_side` or `scale` made larger: 8192 x 4096
MAX_OBJECTS = 2000  # in one image
MAX_MASK_PIXELS = 2**30  # pixels of the masks of one image together
MAX_OUTLINE_PIXELS = 10**6  # pixels along the polygons of one object
MAX_POLYGONS = 10_000  # of one object
MAX_COCO_ID = 2**53  # an id of COCO's files: beyond, numbers are no longer exact in every reader
MAX_VOLUME_VALUES = 2**30  # numbers of a volume: 4 GiB as they are computed with
MAX_FILE_BYTES = 2**30  # bytes of a file that is read whole: an image in a shard, a PNG file of 16 bits
MAX_NAME_LENGTH = 1024  # letters of the name of a sample, an image or a class
MAX_TAR_HEADER_BYTES = 2**20  # bytes of what a tar says about one member
MAX_TARGETS = 2**28  # images times classes, where a table has more classes than a tenth of its images
MAX_ARRAY_BYTES = 2**36  # bytes of an array of images; and no more than the machine has
MAX_MATLAB_BYTES = 2**26  # bytes of a .mat file of masks or places
MAX_HDF5_CHUNK_BYTES = 2**28  # bytes of an HDF5 file that are stored as one part
MAX_MATLAB_NESTING = 16  # arrays in arrays of such a file

# What networks see
MAX_INPUT_SIDE = 4096  # side of a network's input; the largest network of the papers takes 608
MAX_INPUT_CHANNELS = 1024
MAX_BATCH_SIZE = 4096  # of one call of an exported file whose batch is fixed
MAX_INPUT_ELEMENTS = 2**28  # numbers of that call: 1 GiB

# Text
MAX_RECIPE_LENGTH = 2**22  # letters
MAX_RECIPE_VALUES = 100_000  # of a recipe, each counted where it is used; the recipes here hold 50
MAX_DIGITS = 1000  # of a number
MAX_DESCRIPTION_BYTES = 2**26  # bytes of what an exported file says about itself

# Weights
MAX_SHARING = 4  # so many times the bytes of a file its tensors may hold together, since some share their numbers
MAX_CHECKPOINT_ENTRIES = 1_000_000  # of the mappings of a checkpoint, each counted where it is used
MAX_AXES = 32  # of a tensor
