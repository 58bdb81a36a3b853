//! Tests of the content store through its public face.

#[cfg(test)]
mod archive;
#[cfg(test)]
mod gc;
#[cfg(test)]
mod index;
#[cfg(test)]
mod ingest;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tarball;
