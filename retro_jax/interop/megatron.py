def is_one(path):
    return False
