#![no_main]
ramlift_fuzz::target!("qcow2");
