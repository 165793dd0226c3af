"""edgeattn.runtimes: what runs a bundle on a device, in numpy and one engine alone."""
