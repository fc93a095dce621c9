//! The hub's shared access policies and what each allows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::sas::Token;

/// What a policy may allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Right {
    RegistryRead,
    RegistryWrite,
    ServiceConnect,
    DeviceConnect,
}

/// The two keys of a policy and its rights.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Policy {
    primary: String,
    secondary: String,
    rights: Vec<Right>,
}

/// All policies, by name.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Policies(BTreeMap<String, Policy>);

/// The policy with every right.
pub(crate) const OWNER: &str = "iothubowner";

impl Policies {
    /// The five policies that every new hub has, with fresh keys.
    pub(crate) fn generate() -> Self {
        use Right::{DeviceConnect, RegistryRead, RegistryWrite, ServiceConnect};
        let policies: [(&str, &[Right]); 5] = [
            (
                OWNER,
                &[RegistryRead, RegistryWrite, ServiceConnect, DeviceConnect],
            ),
            ("service", &[ServiceConnect]),
            ("device", &[DeviceConnect]),
            ("registryRead", &[RegistryRead]),
            ("registryReadWrite", &[RegistryRead, RegistryWrite]),
        ];
        let policy = |rights: &[Right]| Policy {
            primary: clock::new_key(),
            secondary: clock::new_key(),
            rights: rights.to_vec(),
        };
        Self(
            policies
                .into_iter()
                .map(|(name, rights)| (name.to_owned(), policy(rights)))
                .collect(),
        )
    }

    /// The primary key of the policy with every right.
    pub(crate) fn owner_key(&self) -> &str {
        self.0.get(OWNER).map_or("", |policy| &policy.primary)
    }

    /// Whether one of the keys of the policy that `token` names made it, and what it then allows.
    pub(crate) fn rights_of(&self, token: &Token) -> Option<&[Right]> {
        let policy = self.0.get(token.policy.as_deref()?)?;
        let signed = token.signed_by(&policy.primary) || token.signed_by(&policy.secondary);
        signed.then_some(policy.rights.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sas;

    #[test]
    fn a_token_has_the_rights_of_the_policy_it_names() {
        let policies = Policies::generate();
        let token = |key: &str, policy: &str| {
            Token::parse(&sas::sign("hub", key, 1, Some(policy)).unwrap()).unwrap()
        };
        let service = policies.0["service"].secondary.clone();
        assert_eq!(
            policies.rights_of(&token(&service, "service")),
            Some(&[Right::ServiceConnect][..])
        );
        assert_eq!(policies.rights_of(&token(&service, OWNER)), None);
        assert_eq!(policies.rights_of(&token(&service, "none")), None);
        let owner = policies.owner_key().to_owned();
        assert_eq!(policies.rights_of(&token(&owner, OWNER)).unwrap().len(), 4);
    }
}
