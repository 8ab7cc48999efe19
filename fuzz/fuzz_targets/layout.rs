#![no_main]
ramlift_fuzz::target!("layout");
