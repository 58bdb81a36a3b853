//! Inverses of effects, run backwards unless the whole succeeds.

use crate::EngineError;

type Step = Box<dyn FnOnce() -> Result<(), EngineError>>;

/// A stack of inverses. Dropped without [`Undo::commit`], it runs them last first; every inverse
/// is idempotent, and a failing one does not stop the others.
#[derive(Default)]
pub(crate) struct Undo {
    steps: Vec<Step>,
}

impl Undo {
    /// Pushes the inverse of an effect that is about to be made.
    pub(crate) fn push(&mut self, step: impl FnOnce() -> Result<(), EngineError> + 'static) {
        self.steps.push(Box::new(step));
    }

    /// Forgets all inverses: the whole succeeded.
    pub(crate) fn commit(mut self) {
        self.steps.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        while let Some(step) = self.steps.pop() {
            // What an inverse could not undo, `reconcile` finds by its record and tries again.
            let _ = step();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    #[test]
    fn runs_backwards_unless_committed() {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let mut undo = Undo::default();
        for n in 0..3 {
            let seen = Rc::clone(&seen);
            undo.push(move || {
                seen.borrow_mut().push(n);
                Ok(())
            });
        }
        drop(undo);
        assert_eq!(*seen.borrow(), [2, 1, 0]);

        let mut undo = Undo::default();
        let again = Rc::clone(&seen);
        undo.push(move || {
            again.borrow_mut().push(9);
            Ok(())
        });
        undo.commit();
        assert_eq!(seen.borrow().len(), 3);
    }
}
