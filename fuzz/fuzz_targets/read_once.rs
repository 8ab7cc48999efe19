#![no_main]
ramlift_fuzz::target!("read_once");
