//! Numbers that look random and are the same every time.

/// What comes next follows from where it began.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    /// Returns a number below a limit.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}
