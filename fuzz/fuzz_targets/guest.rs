#![no_main]
ramlift_fuzz::target!("guest");
