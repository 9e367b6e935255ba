"""ImageNet as it is distributed, made into folders of small images."""
