"""What the kernel maps where: direct map, vmemmap, its own image, the KASAN shadow; and random bases."""
