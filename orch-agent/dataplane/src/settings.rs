//! The node's settings as the programs read them: the one place that changes part of them.

use orch_ebpf::config::{CONFIG_MAP, Config};

use crate::{
    DataplaneError,
    maps::{Maps, failed},
};

impl Maps {
    /// Changes some of the settings and leaves the others as they are. Since the maps stand behind one lock, no
    /// writer undoes what another has just written.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn configure(&mut self, change: impl FnOnce(&mut Config)) -> Result<(), DataplaneError> {
        let before = self.config.get(&0, 0).map_err(failed(CONFIG_MAP))?;
        let mut config = before;
        change(&mut config);
        if config == before {
            return Ok(());
        }
        self.config.set(0, config, 0).map_err(failed(CONFIG_MAP))
    }
}
