//! The registry of federated sources, as the lanes know it.
//!
//! It is read with every claim ([`super::claims`]), so before a lane gets a record, and again from time to time here,
//! by a task and a session of its own: neither a record nor a rebalance waits for it. When it can't be read, the lanes
//! go on with what was read last; when it never was, nothing is claimed. A look of ours that began before a claim's may end after it: then a change of the
//! registry shows one interval later.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::model::federated::FederatedSources;
use crate::store::{SessionPurpose, Store, StoreError, StoreSession};

/// How often the registry is read again.
const REFRESH_INTERVAL: Duration = Duration::from_secs(30);
/// How long that may take.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the registry again and again; never ends.
pub(super) async fn refresh(store: impl Store, sources: watch::Sender<Arc<FederatedSources>>) {
    let mut has_failed = false;
    loop {
        tokio::time::sleep(REFRESH_INTERVAL).await;
        let read = tokio::time::timeout(REFRESH_TIMEOUT, read(&store)).await;
        match read.unwrap_or_else(|_elapsed| Err(StoreError::no_answer("read the registry of sources"))) {
            Ok(read) => {
                sources.send_replace(Arc::new(read));
                has_failed = false;
            }
            // Once; an outage is told by the lanes.
            Err(error) if !has_failed => {
                has_failed = true;
                tracing::warn!(%error, "the registry of sources can't be read; events are compared with what was read last");
            }
            Err(_) => {}
        }
    }
}

async fn read(store: &impl Store) -> Result<FederatedSources, StoreError> {
    let mut session = store.connect(SessionPurpose::Registry).await?;
    let sources = session.federated_sources().await?;
    session.close().await;
    Ok(sources)
}
