//! Tests of layers and root file systems, on real tars and real overlay mounts.

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod rootfs;
#[cfg(test)]
mod support;
#[cfg(test)]
mod unpack;
