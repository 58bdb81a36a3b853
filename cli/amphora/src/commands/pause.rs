//! `pause` and `unpause`.

use amphora_engine::Engine;

use super::change::Containers;
use super::each;
use crate::errors::Outcome;
use crate::ui;

/// `pause`.
pub(crate) fn pause(engine: &Engine, args: &Containers) -> Outcome {
    each(&args.names, |name| {
        engine.pause(&engine.find(name)?)?;
        ui::line(name);
        Ok(())
    })
}

/// `unpause`.
pub(crate) fn unpause(engine: &Engine, args: &Containers) -> Outcome {
    each(&args.names, |name| {
        engine.unpause(&engine.find(name)?)?;
        ui::line(name);
        Ok(())
    })
}
