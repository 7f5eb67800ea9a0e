"""Files: a working directory, its artefacts and their manifests, columns, TFRecord shards."""
