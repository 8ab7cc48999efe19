#![no_main]
ramlift_fuzz::target!("mapped_ram");
