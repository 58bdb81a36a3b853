//! Pulls from the real `docker-registry`, straight and through a front that misbehaves.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod access;
mod faults;
mod front;
mod image;
mod pulls;
mod registry;
mod site;
