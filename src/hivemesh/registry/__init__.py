"""What registries say of images: the digest a name stands for, and the platforms it runs on."""
