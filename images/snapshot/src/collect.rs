//! Collection over content and layers at once.

use amphora_content::{Collected, Partials, Pins, Store};

use crate::{Layers, Result};

/// Removes the blobs, image records and layers that no reference and no pin reaches. Does nothing,
/// and says so, while a pull, a load or whoever else holds a lease is at work.
///
/// # Errors
/// When the index cannot be read, or something cannot be removed.
pub fn collect(
    store: &Store,
    layers: &Layers,
    pins: &Pins,
    partials: Partials,
) -> Result<Collected> {
    let Some(proof) = store.try_exclusive()? else {
        let mut deferred = Collected::default();
        deferred.deferred = true;
        return Ok(deferred);
    };
    let live = store.live(pins)?;
    let mut collected = store.sweep(&proof, &live, partials)?;
    layers.sweep()?;
    for diff_id in layers.list()? {
        if !live.layers.contains(&diff_id) && layers.remove(&diff_id)? {
            collected.layers.push(diff_id);
        }
    }
    Ok(collected)
}
