def parse(argv):
    return None


def run(options):
    return None
