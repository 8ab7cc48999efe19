#![no_main]
ramlift_fuzz::target!("device_made");
