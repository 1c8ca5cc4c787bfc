"""ImageNet's channel statistics, on the 0-1 scale, as the reference and torchvision use them."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
