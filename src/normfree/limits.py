"""How large what is read may be.

What is beyond is named, with its size and the limit. An image, or what belongs to it, is left out and counted like one
that cannot be read; a file that was asked for is refused. Where a limit is of something that a file claims, it is
looked at before anything of that size is made.
"""

# Images, and what belongs to them
MOST_SIDE = 2**16  # pixels of an image file along a side; JPEG has no more. Its pixels in all: PIL's limit, 89,478,485
MOST_RESIZED = 2**25  # pixels of an image that `short_side` or `scale` made larger: 8192 x 4096
MOST_OBJECTS = 2000  # in one image
MOST_DRAWN = 2**30  # pixels of the masks of one image together
MOST_OUTLINE = 10**6  # pixels along the polygons of one object
MOST_POLYGONS = 10_000  # of one object
MOST_NUMBERS = 2**53  # an id of COCO's files: beyond, numbers are no longer exact in every reader
MOST_FILE = 2**30  # bytes of a file that is read whole: an image in a shard, a PNG file of 16 bits
MOST_NAME = 1024  # letters of the name of a sample, an image or a class
MOST_HEADER = 2**20  # bytes of what a tar says about one member
MOST_TARGETS = 2**28  # images times classes, where a table has more classes than a tenth of its images
MOST_UNPACKED = 2**26  # bytes of a .mat file of masks or places
MOST_CHUNK = 2**28  # bytes of an HDF5 file that are stored as one part
MOST_DEEP = 16  # arrays in arrays of such a file

# What networks see
MOST_PIXELS = 4096  # side of a network's input; the largest network of the papers takes 608
MOST_CHANNELS = 1024
MOST_IMAGES = 4096  # of one call of an exported file whose batch is fixed
MOST_INPUT = 2**28  # numbers of that call: 1 GiB

# Text
MOST_LETTERS = 2**22  # of a recipe
MOST_VALUES = 100_000  # of a recipe, each counted where it is used; the recipes here hold 50
MOST_DIGITS = 1000  # of a number
MOST_DESCRIPTION = 2**26  # bytes of what an exported file says about itself

# Weights
MOST_TIMES = 4  # so many times the bytes of a file its tensors may hold together, since some share their numbers
MOST_ENTRIES = 1_000_000  # of the mappings of a checkpoint, each counted where it is used
MOST_AXES = 32  # of a tensor
