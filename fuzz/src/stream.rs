//! The walk, over any bytes.

use ramlift::Stream;

use super::guest::look_at_guest;
use super::look::{check_error, check_every_byte, look_through};

pub fn run(bytes: &[u8]) {
    match Stream::parse(bytes) {
        Ok(stream) => {
            look_through(&stream, bytes);
            check_every_byte(&stream, bytes);
            look_at_guest(&stream);
        }
        Err(error) => check_error(&error, bytes),
    }
}
