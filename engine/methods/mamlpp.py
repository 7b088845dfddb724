"""MAML++ (Antoniou, Edwards & Storkey 2018, arXiv 1810.09502).

    φ_0 = θ,   φ_{k+1} = φ_k − α_k ∘ ∇L_s(φ_k; γ_k, β_k),   k < K
    min over θ, α, γ, β of Σ_tasks Σ_k w_k L_t(φ_{k+1}; γ_k, β_k)

α [K, L] has a rate for each tensor and step (LSLR), γ and β [K, G] are gains and biases of batch
norm, a row a step (BNWB), its running statistics likewise (BNRS); w are the weights of the
multi-step loss (MSL), which end at the last step alone. Second derivatives are left out for the
first epochs (DA); the outer rate follows a cosine (CA).

It is what all other methods are choices of: each trick has a setting with a neutral value, see
`engine.meta`, and a preset says which are on. So this method itself chooses nothing.
"""

from engine.methods.base import Method

METHOD = Method("maml++", {}, {}, ("maml++", "maml", "htym-2019", "htym-head"))
